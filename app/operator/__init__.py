"""What an operator asks by `python -m app keys|status|dead|audit|users …`, answered in words; never a secret."""
