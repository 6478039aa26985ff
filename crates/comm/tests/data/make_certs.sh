#!/bin/sh
# Makes the certificates that rcgen cannot: an authority, a leaf of X.509
# version 1 that it issued (no extensions, as distributed's own tests have), and
# a version 1 leaf of another authority. Valid for a hundred years.
set -eu
cd "$(dirname "$0")"
for name in ca other-ca; do
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500 \
        -subj "/CN=$name" -keyout "$name-key.pem" -out "$name.pem"
done
make_leaf() {
    openssl req -newkey "$3" ${4:+-pkeyopt "$4"} -nodes -subj "/CN=leaf" -keyout "$1-key.pem" -out "$1.csr"
    openssl x509 -req -in "$1.csr" -CA "$2.pem" -CAkey "$2-key.pem" -set_serial 7 -days 36500 -out "$1.pem"
    rm "$1.csr"
}
make_leaf version-1 ca ec ec_paramgen_curve:P-256
make_leaf version-1-rsa ca rsa:2048
make_leaf foreign-version-1 other-ca ec ec_paramgen_curve:P-256
rm ca-key.pem other-ca-key.pem other-ca.pem
