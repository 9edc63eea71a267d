"""The training of the shipped models: data, a dense model, the loop, distillation, export."""
