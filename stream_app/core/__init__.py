"""What a click does to a session and which items it leads to. Pure: no clock, no files, no network, no threads."""
