"""From a prompt to tokens: decoders, samplers, and the generator of events."""
