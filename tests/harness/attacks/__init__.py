"""What is done to a system under load, by kind. Each attack begins with a worker `a`, and ends once all is mended."""
