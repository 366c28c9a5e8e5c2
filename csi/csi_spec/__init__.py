"""The messages and services of the CSI spec 1.12, for both ends of the socket. Decides nothing.

`csi.proto` is the spec's own file; `csi.binpb` is its compiled descriptor and `csi_pb2.pyi` its types, both written by

    cd csi/csi_spec && python -m grpc_tools.protoc -I. --descriptor_set_out=csi.binpb --pyi_out=. csi.proto

(tests/test_house.py compares). The classes are made from the descriptor when they are first imported: generated code
would tie wherry to one major version of protobuf.
"""
