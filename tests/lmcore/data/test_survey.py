import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmcore.config import DataConfig, QualityConfig, SourceConfig
from lmcore.data.survey import survey

PROSE = "The miller of the river brings flour to the people, and they have to bake bread with it that day. "


def look_at(path, profile="none", **options):
    source = SourceConfig(name="s", kind="files", path=str(path), **options)
    (found,) = survey(DataConfig(sources=(source,), quality=QualityConfig(profile=profile)))
    return found


def write(path, texts, field="text"):
    path.write_text("".join(json.dumps({field: text, "id": i}) + "\n" for i, text in enumerate(texts)))
    return path


def wrong(found):
    return {finding.found: finding for finding in found.findings if finding.state != "ok"}


def test_sound_prose_has_no_finding(tmp_path):
    texts = [f"In the year {i} " + f"{PROSE} It was number {i}. " * 12 for i in range(50)]
    found = look_at(write(tmp_path / "a.jsonl", texts))
    assert not wrong(found)
    assert (found.files, found.records, found.languages["en"]) == (1, 50, 50)
    assert set(found.fields) == {"text", "id"}


@pytest.mark.parametrize(
    ("texts", "part", "remedy"),
    [
        (
            ["<html><body><p>mill</p><p>river</p></body></html>"] * 9 + [PROSE],
            "look like HTML",
            "text_format: html",
        ),
        (["cafÃ© of the miller, naÃ¯ve and dÃ©jÃ vu " + PROSE] * 10, "mojibake", "repair_mojibake"),
        (["ok", "no", "mill"] * 5 + [PROSE], "under 20 characters", "inspect"),
        ([PROSE] * 10, "are copies", ""),
        ([f"{i} \ufffd\ufffd\ufffd {PROSE}" for i in range(9)], "replacement characters", "original"),
    ],
)
def test_each_suspicion_is_reported_with_its_remedy(texts, part, remedy, tmp_path):
    found = wrong(look_at(write(tmp_path / "a.jsonl", texts)))
    (finding,) = [finding for text, finding in found.items() if part in text]
    assert remedy in finding.remedy
    assert finding.state == "warning"


def test_a_wrong_field_is_a_failure_that_names_the_fields_there_are(tmp_path):
    found = look_at(write(tmp_path / "a.jsonl", [PROSE] * 4, field="content"))
    first = found.findings[0]
    assert (first.state, found.quarantined.total()) == ("failed", 4)
    assert first.remedy == "Set text_field of source 's' to one of: content, id."


def test_a_wrong_column_names_the_columns_there_are(tmp_path):
    pq.write_table(pa.table({"body": [PROSE], "id": [1]}), tmp_path / "a.parquet")
    found = look_at(tmp_path / "a.parquet")
    assert "body, id" in found.findings[0].found
    assert found.findings[0].state == "failed"


def test_a_source_without_files_is_a_failure(tmp_path):
    (finding,) = look_at(tmp_path / "*.jsonl").findings
    assert finding.state == "failed"
    assert "matches no file" in finding.found


def test_a_profile_that_would_drop_nearly_all_is_reported(tmp_path):
    texts = [f"def mill_{i}(x): return x[{i}]" for i in range(20)]
    found = look_at(write(tmp_path / "a.jsonl", texts), "prose")
    assert found.dropped == {"gopher.min_words": 20}
    assert any("profile prose would drop 100%" in text for text in wrong(found))


def test_private_data_that_is_not_masked_is_reported(tmp_path):
    found = look_at(
        write(tmp_path / "a.jsonl", [f"write to miller{i}@mill.example, {PROSE}" for i in range(8)])
    )
    (finding,) = [one for one in found.findings if "emails" in one.found]
    assert finding.remedy == "Set data.privacy.emails=true to mask them."


def test_the_sample_of_a_large_file_is_spread_over_it(tmp_path):
    half = [f"{i} {PROSE * 90}" for i in range(1_500)]
    other = [
        f"{i} " + "Der Müller mahlt das Korn am Fluss und bringt das Mehl ins Dorf. " * 120
        for i in range(1_500)
    ]
    found = look_at(write(tmp_path / "a.jsonl", half + other))
    assert found.records < 3_000
    assert {"en", "de"} <= set(found.languages)
