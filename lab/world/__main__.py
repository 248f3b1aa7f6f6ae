"""Write the task files and cards from `words.json`."""

from lab.world import CARDS, write_tasks

write_tasks()
print(f"tasks and cards written: {CARDS}")
