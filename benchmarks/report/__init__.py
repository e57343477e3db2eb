"""What a run found, for people: on the terminal, as Markdown, and as one page of HTML."""
