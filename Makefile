# `make` prints the targets. Every target makes what it needs, the virtual environment included.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PEERS  := .venv-peers
LIBS   := .venv-libraries
KIT    := $(abspath .kit)
JOBS   ?= 4
LOCK   := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url

# Tests and demo start hundreds of processes: without kept bytecode each compiles torch and Faust anew, for 2 to 4 s.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test long fuzz proof matrix soak check kit registry bench docs pictures screenshots kafka lock generate audit sbom clean

help:  ## print this
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# uv links packages out of its own cache, so that torch is downloaded and unpacked once a machine.
$(VENV)/.installed: pyproject.toml requirements/dev.txt requirements/uv.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "Python 3.11 to 3.13 is needed, this is %d.%d; name another with PYTHON=python3.x" % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/uv.txt
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --require-hashes -r requirements/dev.txt
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

demo: $(VENV)/.installed  ## Kafka, worker, trainer and a simulated shop for five minutes; CLICKS=file uses real clicks
	@$(BIN)/python -m deploy.demo $(if $(CLICKS),--clicks "$(CLICKS)") $(DEMO)

# Much of the time tests wait for sessions, restarts and elections: four at a time on two cores, on one Kafka.
# In the order of their folders: those that wait the longest come before the many short ones, which fill the gaps.
test: $(VENV)/.installed  ## every test but the longest, on a real Kafka; TEST=path runs some
	$(BIN)/pytest -n $(JOBS) --dist loadscope --no-loadscope-reorder -m "not long" $(TEST)

long: $(VENV)/.installed  ## the longest tests: another in `make test` comes close to each
	$(BIN)/pytest -n $(JOBS) --dist load -m long $(TEST)

# Tests of properties alone; `make test` tries the same few examples of them in every run.
fuzz: $(VENV)/.installed  ## properties with fresh examples, for a scheduled run; EXAMPLES=n a test (1000), TEST=path runs some
	EXAMPLES=$(or $(EXAMPLES),1000) $(BIN)/pytest -n $(JOBS) -m hypothesis --hypothesis-profile=fresh --timeout 3600 $(TEST)

proof: $(VENV)/.installed  ## every order of crashes, cut-offs and rebalances around a few clicks (docs/proof.md)
	$(BIN)/python -m tests.proof

matrix: $(VENV)/.installed  ## every attack of docs/proof.md on a real Kafka; SCENARIO="name name" SECONDS=n SEED=n RATE=n MINUTES=n choose
	$(BIN)/python -m tests.harness.matrix $(if $(SCENARIO),--scenario $(SCENARIO)) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) $(if $(RATE),--rate $(RATE)) $(if $(MINUTES),--minutes $(MINUTES))

soak: $(VENV)/.installed  ## hours under load and attacks, and what grows; HOURS=n in all, goes on where it was broken off
	$(BIN)/python -m tests.harness.soak --hours $(or $(HOURS),2) $(if $(RATE),--rate $(RATE))

check: $(VENV)/.installed  ## ruff and mypy strict
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

audit: $(VENV)/.installed  ## known vulnerabilities of the locked requirements; says so where it cannot ask
	$(BIN)/python -m deploy.supply.audit

sbom: $(VENV)/.installed  ## bills of material (CycloneDX) and the licences of what is installed, in sbom/
	$(BIN)/python -m deploy.supply.sbom sbom

# Both are built from source, which takes minutes the first time; `make test` skips these tests where they are missing.
$(KIT)/helm: export GOBIN = $(KIT)
$(KIT)/helm:
	go install helm.sh/helm/v3/cmd/helm@v3.22.0
$(KIT)/kubeconform: export GOBIN = $(KIT)
$(KIT)/kubeconform:
	go install github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0

kit: $(VENV)/.installed $(KIT)/helm $(KIT)/kubeconform  ## the Helm chart by helm and kubeconform, which are built first; needs Go
	PATH="$(KIT):$$PATH" $(BIN)/pytest tests/unit/deploy/test_chart.py

# `make test` skips its test where this has not run: 140 MB, and a start of twenty seconds.
$(KIT)/apicurio:
	mvn --batch-mode --quiet --strict-checksums dependency:get -Dtransitive=false -Dartifact=io.apicurio:apicurio-registry-app:2.6.13.Final:zip:all
	mvn --batch-mode --quiet --offline dependency:copy -Dartifact=io.apicurio:apicurio-registry-app:2.6.13.Final:zip:all -DoutputDirectory=$(KIT)
	rm -rf $@.unfinished && $(PYTHON) -m zipfile -e $(KIT)/apicurio-registry-app-2.6.13.Final-all.zip $@.unfinished
	mv $@.unfinished $@ && rm $(KIT)/apicurio-registry-app-2.6.13.Final-all.zip

registry: $(VENV)/.installed $(KIT)/apicurio  ## Avro, Protobuf and JSON Schema with a real schema registry, which is fetched first; needs Maven
	$(BIN)/pytest -n 0 tests/integration/test_schema_registry.py

bench: $(VENV)/.installed $(if $(filter peers,$(or $(BENCH),peers)),$(PEERS)/.installed) $(if $(filter libraries family_training,$(BENCH)),$(LIBS)/.installed)  ## the benchmarks; BENCH="name name" runs some, BENCH=ci a short choice
	@$(BIN)/python -m bench $(BENCH)

docs: $(VENV)/.installed  ## these pages as a site in site/, with an API reference; a broken link ends it
	$(BIN)/mkdocs build --strict -f docs/site/mkdocs.yml
	$(BIN)/pdoc --docformat restructuredtext -o site/api schemas stream_app trainer

pictures: $(VENV)/.installed  ## draw docs/pictures/ anew from the figures in bench/results/
	$(BIN)/python -m bench.pictures

screenshots: $(VENV)/.installed  ## take the pictures of the page anew, from a demo; needs Chromium and ten minutes
	PICTURES=docs/pictures $(BIN)/pytest -n 0 tests/integration/test_page.py -k pictures

# Whom we measure ourselves with needs other versions of what we need.
$(PEERS)/.installed: $(VENV)/.installed requirements/peers.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	VIRTUAL_ENV=$(PEERS) $(BIN)/uv pip install --require-hashes -r requirements/peers.txt
	touch $@

kafka: $(VENV)/.installed  ## a local Kafka in the foreground
	@$(BIN)/python -m deploy.kafka

# --no-deps, as the lock leaves out ray: RecBole's tuning alone needs it, in a version without wheels for later Pythons.
$(LIBS)/.installed: $(VENV)/.installed requirements/libraries.txt
	test -x $(LIBS)/bin/python || $(PYTHON) -m venv $(LIBS)
	VIRTUAL_ENV=$(LIBS) $(BIN)/uv pip install --no-deps --require-hashes -r requirements/libraries.txt
	touch $@

generate: $(VENV)/.installed  ## write schemas/json anew from the code
	$(BIN)/python -m schemas

lock: $(VENV)/.installed  ## resolve the locked requirements anew
	for extra in stream api trainer dev; do $(LOCK) --extra $$extra -o requirements/$$extra.txt pyproject.toml; done
	for alone in uv peers; do $(LOCK) -o requirements/$$alone.txt requirements/$$alone.in; done
	$(LOCK) --no-emit-package ray -o requirements/libraries.txt requirements/libraries.in

clean:  ## remove what the targets made
	rm -rf $(VENV) $(PEERS) $(LIBS) $(KIT) .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info build dist site sbom .demo .soak
