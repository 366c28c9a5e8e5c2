"""The Node Resource Interface, protocol v1alpha1: plugins that watch the life of pods and change containers.

A plugin comes to a socket of root's. Each connection carries two of ttrpc (`mux`): one on which it calls us, one on
which we call it. What it asks for goes through `adjust` onto a container before that is written down.

`api.proto` and `ttrpc.proto` hold the wire facts; their descriptors (.binpb) and types (.pyi) are written by

    cd runtime/wherry/daemon/nri
    for p in api ttrpc; do python -m grpc_tools.protoc -I. --descriptor_set_out=$p.binpb --pyi_out=. $p.proto; done
    sed -i '/^ *None: /d' api_pb2.pyi  # the first value of Field, which is no name in Python

(tests/test_house.py compares).
"""
