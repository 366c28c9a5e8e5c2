#!/bin/sh
# Makes the image of the images' bench without any network: three gzip layers of ordinary system files (about 370 MB in
# 18,000 files on a Debian 12 that builds software) and pushes it.   big_image.sh LAYOUT REGISTRY/NAME:TAG
# Env: BIG_LAYERS (three words; ':' joins trees of one layer)
set -eu
layout=$1 target=$2
BIG_LAYERS=${BIG_LAYERS:-/usr/lib/python3:/usr/lib/python3.11 /usr/include /usr/share/doc:/usr/share/perl}
trees=$(mktemp -d "$(dirname "$layout")/trees.XXXXXX")
trap 'rm -rf "$trees"' EXIT
umoci init --layout "$layout"
umoci new --image "$layout:big"
umoci config --image "$layout:big" --config.cmd /bin/sh
number=0
for layer in $BIG_LAYERS; do
    number=$((number + 1))
    mkdir "$trees/$number"
    for source in $(echo "$layer" | tr ':' ' '); do cp -a "$source" "$trees/$number/"; done
    umoci insert --image "$layout:big" "$trees/$number" "/data/$number"
done
du -sm "$trees" | sed 's/\t.*/ MB in the big image/'
echo "$(find "$trees" -type f | wc -l) files in the big image"
skopeo --insecure-policy copy --quiet --dest-tls-verify=false "oci:$layout:big" "docker://$target"
