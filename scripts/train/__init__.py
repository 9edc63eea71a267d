"""How the shipped models were made: data, a dense model, the loop, distillation, export."""
