"""What the engine did, told as events; metrics and plots are made from those alone."""
