"""Methods that vLLM adds to its workers: new weights for a running engine, and a comparison of parameters.

Named in ``worker_extension_cls``; vLLM mixes the class into its CPU, GPU or NPU worker. It goes through the model
runner because the NPU worker of vllm-ascend 0.23 has no ``reload_weights`` of its own while its runner has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

_ROWS = 4096


class ReloadExtension:
    """Mixed into a vLLM worker; called through ``LLM.collective_rpc`` by name."""

    device: Any
    model_runner: Any

    def npd_reload(self, path: str) -> None:
        """Replaces all weights by those of a checkpoint of the same shapes."""
        import torch

        with torch.device(self.device):
            self.model_runner.reload_weights(weights_path=path)
            self._npd_repack()

    def _npd_repack(self) -> None:
        """Repacks the weights of which vLLM's reload leaves an old packed copy.

        On the CPU vLLM multiplies by packed copies of the weights (``cpu_linear`` of a layer). Its reload repacks a
        layer when the layer's tensors arrive from the checkpoint. A tied head has none there: its weight is the
        embedding's and new, its packed copy is the old one. Layers whose weight was removed after packing always have
        tensors of their own. Other devices keep no such copies: there a tied head reads the embedding's memory.
        """
        for layer in self.model_runner.get_model().modules():
            if hasattr(layer, "cpu_linear") and layer.weight.numel():
                layer.quant_method.process_weights_after_loading(layer)

    def npd_mask_padding(self, vocabulary: int) -> None:
        """Takes ids at and beyond ``vocabulary`` out of all logits from now on, before anything is sampled or stored.

        A hook on the model's ``LogitsProcessor``, which runs outside the captured graphs, on logits that are gathered
        over tensor-parallel ranks. A mask for each request (``allowed_token_ids``) would be the vocabulary's size.

        Raises:
            RuntimeError: the model has no such layer.
        """
        from vllm.model_executor.layers.logits_processor import LogitsProcessor

        def mask(layer: Any, inputs: Any, logits: Any) -> None:
            if logits is None:  # a rank that does not sample
                return
            if logits.shape[-1] != layer.org_vocab_size:
                raise RuntimeError(
                    f"logits of {logits.shape[-1]} columns, expected {layer.org_vocab_size}: they are "
                    "not gathered, so padding and vocabulary cannot be distinguished"
                )
            logits[..., vocabulary:] = float("-inf")

        layers = [m for m in self.model_runner.get_model().modules() if isinstance(m, LogitsProcessor)]
        if not layers:
            raise RuntimeError("the model has no LogitsProcessor whose padding could be masked")
        for layer in layers:
            layer.register_forward_hook(mask)

    def npd_differences(self, path: str) -> tuple[int, list[str]]:
        """Compares the engine's weights with a checkpoint, value by value.

        Looks at parameters that vLLM keeps under the checkpoint's own name: norms, biases, embeddings (their first
        rows) and the matrices that it neither fuses nor repacks.

        Returns:
            Number of parameters compared, names of those that differ.
        """
        import torch
        from safetensors import safe_open

        ours = {n: p for n, p in self.model_runner.get_model().named_parameters() if p.numel()}
        compared, different = 0, []
        for file in sorted(Path(path).glob("*.safetensors")):
            with safe_open(file, "pt") as f:
                for name in set(f.keys()) & set(ours):
                    have, rows = ours[name].detach(), f.get_slice(name)
                    shape = rows.get_shape()
                    # A vocabulary may be padded; a tensor-parallel slice is smaller and is left out.
                    if have.shape[0] < shape[0] or list(have.shape[1:]) != shape[1:]:
                        continue
                    n = min(shape[0], _ROWS)
                    compared += 1
                    same = torch.isclose(have[:n].cpu(), rows[:n].to(have.dtype), rtol=0, atol=0, equal_nan=True)
                    if not bool(same.all()):
                        different.append(name)
        return compared, different
