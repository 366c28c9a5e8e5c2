"""A CSI driver for volumes on this node's own disks. A program of its own: it imports nothing of wherry."""
