"""What is asked and what a right answer is: tasks, rewards by name, and where strangers' programs may run."""
