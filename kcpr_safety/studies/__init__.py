"""What is composed of everything below: the demo, the benches, the doctor."""
