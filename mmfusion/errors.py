"""What all refusals have in common."""


class UserError(Exception):
    """Something that whoever asked can mend; the message is one line that names the thing and the remedy."""
