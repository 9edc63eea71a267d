"""Three frozen records: what a model is, how an engine is set up, how a request is sampled. No torch here."""

from minillm.config.checks import require_int, require_number, shown
from minillm.config.engine import (
    BACKENDS,
    DEVICES,
    DTYPES,
    GUARANTEES,
    KV_DTYPES,
    MAX_BRANCHES,
    Backend,
    Device,
    DraftVerification,
    Dtype,
    EngineConfig,
    EngineOptions,
    GuaranteeName,
    KVDtype,
    engine_config,
)
from minillm.config.model import Activation, ExpertSpec, LayerSpec, ModelConfig, RopeConfig
from minillm.config.quantization import Quantization
from minillm.config.sampling import SamplingParams
from minillm.config.tenants import TenantLimits

__all__ = [
    "BACKENDS",
    "DEVICES",
    "DTYPES",
    "GUARANTEES",
    "KV_DTYPES",
    "MAX_BRANCHES",
    "Activation",
    "Backend",
    "Device",
    "DraftVerification",
    "Dtype",
    "EngineConfig",
    "EngineOptions",
    "ExpertSpec",
    "GuaranteeName",
    "KVDtype",
    "LayerSpec",
    "ModelConfig",
    "Quantization",
    "RopeConfig",
    "SamplingParams",
    "TenantLimits",
    "engine_config",
    "require_int",
    "require_number",
    "shown",
]
