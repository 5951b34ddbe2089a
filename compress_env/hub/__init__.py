"""Students and policies on the Hugging Face Hub: what travels (`contents`), the model card (`card`), push and pull (`transfer`)."""
