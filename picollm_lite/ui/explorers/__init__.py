"""Look closer: answers, rewards and tokens, each with controls that change what is shown."""
