"""`wherry-oci`: the runc-compatible face. It works on bundles, and knows no images, names or networks."""
