"""The commands; `minillm_repl.repl.registry.discover` finds them."""
