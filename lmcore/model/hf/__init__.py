"""Models as Hugging Face has them: directories that come in, and that go out."""
