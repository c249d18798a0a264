"""What a report is made of: its figures, findings, pages of facts, and the files of its one page."""
