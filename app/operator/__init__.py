"""What an operator asks by `python -m app keys|status|dead …`: read, asked and answered in words; never a secret."""
