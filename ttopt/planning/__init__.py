"""What a configuration needs, estimated and measured."""
