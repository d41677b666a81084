"""What DeepSpeed is told. Everything it could do behind our back (printing, saving, scheduling) stays off."""

from __future__ import annotations

from typing import Any

from coatnet.config.overlap import WINDOWS
from coatnet.training.sections import ZeroConfig


def deepspeed_config(zero: ZeroConfig, *, clip: float, precision: str, parameters: int) -> dict[str, Any]:
    """Return DeepSpeed's config.

    The accumulation is ours: micro-batches are counted by `set_gradient_accumulation_boundary` and scaled by
    us, so that the global batch can change in the middle of a run.

    Args:
        zero: how to shard.
        clip: the gradient's greatest norm; 0 is off.
        precision: of the run.
        parameters: of the model.
    """
    bucket = bucket_elements(zero, parameters=parameters)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "steps_per_print": None,
        # Its clock waits for the GPU before and after each micro-batch, so that nothing is sent off ahead.
        "timers": {"throughput": {"enabled": False}},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": clip if zero.stage > 0 else 0.0,
        "zero_optimization": {
            "stage": zero.stage,
            "overlap_comm": zero.overlap_communication,
            "contiguous_gradients": True,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
    }
    if zero.stage == 3:
        config["zero_optimization"] |= {
            "stage3_param_persistence_threshold": zero.persist_elements,
            "stage3_prefetch_bucket_size": bucket,
            "stage3_max_live_parameters": bucket,
            "stage3_max_reuse_distance": 0,
            "sub_group_size": bucket,
        }
    # At stage 0 DeepSpeed would accumulate in bf16; `optimizer.MasterAdamW` keeps its own masters there.
    if precision == "bf16" and zero.stage > 0:
        config["bf16"] = {"enabled": True, "immediate_grad_update": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def bucket_elements(zero: ZeroConfig, *, parameters: int) -> int:
    """Return the size of a bucket, and of a window of stage 3, for a model of so many parameters.

    A bucket is allocated whole, and need not be larger than what it is for. What overlaps has to be in parts:
    of one bucket for the whole model nothing is sent before the backward pass is over.
    """
    if zero.stage == 3 or zero.overlap_communication:
        parameters = max(parameters // WINDOWS, 1)
    return min(zero.bucket_elements, parameters + parameters % 2)
