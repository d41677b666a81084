"""Corpora behind http, https and s3: fetched whole, verified, cached once per node. Knows no samples."""
