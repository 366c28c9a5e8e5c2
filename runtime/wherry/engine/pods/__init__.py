"""Pods: sandboxes that hold namespaces, a network and a cgroup for their containers, as the Kubernetes CRI wants them.

A pod is a row (who asked for what) and, while it is ready, `STATE/pods/<id>/` (what it holds). Its containers are
containers like all others, with a note of their pod.
"""
