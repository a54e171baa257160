"""FSDP on CPU: to be imported before hftune.

accelerate leaves FSDP out where there is no accelerator. This puts it back; nothing else differs
from a run on GPUs.
"""

from __future__ import annotations

from accelerate import state
from accelerate.utils import DistributedType

_init = state.AcceleratorState.__init__


def _with_fsdp(self, *args, **kwargs):
    _init(self, *args, **kwargs)
    plugin = kwargs.get("fsdp_plugin")
    if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = plugin
        state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP


state.AcceleratorState.__init__ = _with_fsdp
