"""What the nano models are pre-trained on: pictures of Material Design icons and short texts about them."""
