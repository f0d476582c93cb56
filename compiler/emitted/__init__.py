"""What an emitted module needs when it runs."""
