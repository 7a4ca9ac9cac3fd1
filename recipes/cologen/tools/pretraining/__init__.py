"""How the tiny base was made: the tasks it was pretrained on, their wording, the steps, the scores."""
