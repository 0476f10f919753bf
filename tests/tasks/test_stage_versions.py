"""A changed default must raise its stage's version: keys leave defaults out, so old work would seem new.

When this fails because a default was changed on purpose: raise the stage's version, then record the new pair
that the message shows.
"""

import pytest

from lmcore.config import Recipe, identify
from lmcore.data import prepare
from lmcore.store import sha256_json
from tasks.data_report import REPORT_SETTINGS, REPORT_VERSION
from tasks.evaluate import EVALUATE_VERSION
from tasks.train import TRAIN_VERSION

RECIPE = Recipe()
STAGES = {
    "documents": (prepare.DOCUMENTS_VERSION, identify(*prepare.DOCUMENTS_SETTINGS, data=RECIPE.data)),
    "splits": (prepare.SPLITS_VERSION, identify(*prepare.SPLITS_SETTINGS, data=RECIPE.data)),
    "tokenizer": (prepare.TOKENIZER_VERSION, identify(*prepare.TOKENIZER_SETTINGS, data=RECIPE.data)),
    "tokens": (prepare.TOKENS_VERSION, identify(*prepare.TOKENS_SETTINGS, data=RECIPE.data)),
    "report": (REPORT_VERSION, identify(*REPORT_SETTINGS, data=RECIPE.data)),
    "train": (TRAIN_VERSION, identify(model=RECIPE.model, train=RECIPE.train)),
    "evaluate": (EVALUATE_VERSION, identify(evaluation=RECIPE.evaluation)),
}
RECORDED = {
    "documents": (6, "a78e2f206e70341c"),
    "splits": (6, "5bc31beda0119c5c"),
    "tokenizer": (3, "7ef74acc5dfeb4ee"),
    "tokens": (4, "7ef74acc5dfeb4ee"),
    "report": (2, "f5b1fdfaba5d76fa"),
    "train": (3, "8df359be83c45672"),
    "evaluate": (1, "6f38c114f6eb9f87"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_defaults_and_version_change_together(stage):
    version, identity = STAGES[stage]
    assert identity.chosen == {}
    found = (version, sha256_json(identity.values)[:16])
    assert found == RECORDED[stage], f"record {stage!r}: {found} after raising the version"
