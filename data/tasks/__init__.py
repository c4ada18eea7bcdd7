"""Tasks that are made and checked by rule: a context, and questions that are asked after it. Pure
text, the same for the same seed; knows neither models nor tokens."""
