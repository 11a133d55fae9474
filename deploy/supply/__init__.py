"""What is installed with us: bills of material and licences (`make sbom`), known vulnerabilities (`make audit`)."""
