"""Settings of a run: invalid values are refused before the run starts."""

import json

import pytest

from kn_lens.errors import ArgumentError
from kn_lens.runs.settings import PRESETS, Settings


@pytest.mark.parametrize("preset", PRESETS)
def test_settings_survive_a_round_trip_through_json(preset):
    settings = Settings.of(preset)
    assert Settings.of(**json.loads(json.dumps(settings.as_dict()))) == settings


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"limit": 0}, "limit is 0; expected a whole number from 1"),
        ({"limit": "ten"}, "limit is 'ten'; expected a whole number"),
        ({"seed": True}, "seed is True; expected a whole number from 0"),
        ({"n_resamples": 0}, "n_resamples is 0"),
        ({"dose_facts": 2.5}, r"dose_facts is 2\.5; expected a whole number"),
        ({"attr_threshold": 2}, "attr_threshold is 2; expected a share from 0 to 1"),
        ({"attr_threshold": 0.05}, r"only scores from keep=0\.1 .* lower keep"),
        ({"tolerance": 0}, "tolerance is 0; expected a positive number"),
        ({"share_step": float("nan")}, "share_step is nan"),
        ({"doses": ()}, r"doses is \(\); expected numbers"),
        ({"doses": 0.5}, r"doses is 0\.5; expected numbers"),
        ({"lambdas": (1.0,)}, r"lambdas is \(1\.0,\); expected 2 numbers"),
        ({"relations": "P36"}, "relations is 'P36'; expected a list of texts"),
        ({"erase_value": None}, "erase_value is None; expected a text"),
        ({"quadrature": "lefft"}, "quadrature is 'lefft'.*Did you mean 'left'"),
        ({"update_signed": 1}, "update_signed is 1; expected true or false"),
        ({"baseline": "machted"}, "Did you mean 'matched'"),
        ({"n_steps": 20}, "adaptive quadrature chooses it: set n_steps=null"),
        ({"inverses": ("P36",)}, "'P36' is no pair"),
        ({"sed": 1}, "Unknown setting 'sed'.*Did you mean 'seed'"),
    ],
)
def test_invalid_settings_are_refused(changed, message):
    with pytest.raises(ArgumentError, match=message):
        Settings.of(**changed)
