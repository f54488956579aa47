"""How soon answers know of an event, what that costs, and what it is worth."""
