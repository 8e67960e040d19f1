"""NVIDIA ModelOpt 0.44.0, GradNAS: heads and neurons by squared gradients of their masks, a binary search for the size.

- Settings: those of its example for BERT (`examples/chained_optimizations`): labelled rows, the model's own loss, its
  default search space. It squares the gradient of each batch and reads 128 of them: so it gets batches of 8, and twice
  the rows of the others, 128 batches (32 with --quick). Its bound is on all parameters (`params`), so the embeddings
  are added to the share of the encoder.
- It reads the gradients anew for each size. They are the same for all, so they are charged once.
- Its example distils afterwards, with the loss of logits alone; so do we.
- Later versions have no GradNAS; with transformers 5 its masks get no gradient. So: transformers 4.57.6.
"""

from typing import Any

from exchange import Watched, batches, encoder_size, hand_over, serve, teacher, timed


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Prune to the share that is asked for."""
    import modelopt.torch.prune as mtp

    model, loader = teacher(request), batches(request, count=2 * request["count"], size=8)
    whole, encoder = sum(parameter.numel() for parameter in model.parameters()), encoder_size(model)
    bound = whole - encoder + request["share"] * encoder
    read = Watched(loader)

    def prune() -> Any:
        found, _ = mtp.prune(
            model=model,
            mode="gradnas",
            constraints={"params": bound},
            dummy_input=loader[0]["input_ids"],
            config={
                "data_loader": read,
                "collect_func": lambda batch: (batch,),
                "loss_func": lambda output, _batch: output["loss"],
            },
        )
        return found

    small, seconds = timed(prune)
    hand_over(small, request)
    return {"seconds": seconds, "once": read.seconds}


if __name__ == "__main__":
    serve(answer)
