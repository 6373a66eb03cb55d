package testbed

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// CA issues certificates through an intermediate, as real ones do.
type CA struct {
	// File has the certificate of the root, as PEM; Pool is for clients that trust it.
	File string
	Pool *x509.CertPool

	t            testing.TB
	intermediate *x509.Certificate
	key          *ecdsa.PrivateKey
}

// NewCA makes an authority that nobody else trusts.
func NewCA(t testing.TB, name string) *CA {
	t.Helper()
	ca := &CA{t: t, Pool: x509.NewCertPool(), File: filepath.Join(t.TempDir(), "ca.crt")}
	root, rootKey := ca.sign(&x509.Certificate{Subject: pkix.Name{CommonName: name + " root"}, IsCA: true, KeyUsage: x509.KeyUsageCertSign}, nil, nil)
	ca.Pool.AddCert(root)
	if err := os.WriteFile(ca.File, encode("CERTIFICATE", root.Raw), 0o644); err != nil {
		t.Fatal(err)
	}
	ca.intermediate, ca.key = ca.sign(&x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, KeyUsage: x509.KeyUsageCertSign}, root, rootKey)
	return ca
}

// Issue returns a certificate for these hosts, with the intermediate's.
func (ca *CA) Issue(hosts ...string) tls.Certificate {
	ca.t.Helper()
	leaf, key := ca.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: hosts[0]}, DNSNames: hosts,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca.intermediate, ca.key)
	return tls.Certificate{Certificate: [][]byte{leaf.Raw, ca.intermediate.Raw}, PrivateKey: key}
}

// Intermediate returns the certificate and the key that all others are issued by.
func (ca *CA) Intermediate() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{ca.intermediate.Raw}, PrivateKey: ca.key}
}

// EncodePEM returns a certificate with its chain, and its key.
func EncodePEM(t testing.TB, c tls.Certificate) (chain, key string) {
	t.Helper()
	for _, der := range c.Certificate {
		chain += string(encode("CERTIFICATE", der))
	}
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return chain, string(encode("PRIVATE KEY", der))
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// sign makes a key and its certificate; without a parent one that is signed by itself.
func (ca *CA) sign(c, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	ca.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		ca.t.Fatal(err)
	}
	if c.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		ca.t.Fatal(err)
	}
	c.NotBefore, c.NotAfter, c.BasicConstraintsValid = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour), true
	if parent == nil {
		parent, parentKey = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), parentKey)
	if err != nil {
		ca.t.Fatal(err)
	}
	signed, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Fatal(err)
	}
	return signed, key
}
