"""Parsers of content that somebody else made, within limits: JSON, Parquet and safetensors."""
