"""What the ports of app/ are plugged into. Only app/__main__.py imports from here."""
