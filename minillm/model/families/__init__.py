"""The model families: each says how its config.json is read and what its tensors are called."""

from minillm.model.families.family import CheckpointNames, Family
from minillm.model.families.reader import load_model_config, parse_config
from minillm.model.families.table import FAMILIES

__all__ = ["FAMILIES", "CheckpointNames", "Family", "load_model_config", "parse_config"]
