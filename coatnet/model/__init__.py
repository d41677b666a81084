"""The CoAtNet family. `family`, `config`, `operations`, `cost` and `layouts` import no torch."""
