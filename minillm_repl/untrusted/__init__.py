"""What a stranger's file asks of a library is done in a process of its own: it may hang, abort,
or grow there.
"""
