"""Methods that make generators and make them faster: see the README of this folder."""
