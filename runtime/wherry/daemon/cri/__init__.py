"""The Kubernetes Container Runtime Interface v1: requests to engine calls, records to messages.

`api.proto` holds the wire facts; `api.binpb` is its compiled descriptor and `api_pb2.pyi` its types, both written by

    cd runtime/wherry/daemon/cri && python -m grpc_tools.protoc -I. --descriptor_set_out=api.binpb --pyi_out=. api.proto

(tests/test_house.py compares). The classes are made from the descriptor when they are first imported: generated code
would tie wherry to one major version of protobuf.
"""
