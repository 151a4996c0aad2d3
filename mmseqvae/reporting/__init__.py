"""Pictures, sounds and tables of a trained model."""
