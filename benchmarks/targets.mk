# Targets that measure what docs/measured reports. The Makefile includes them.
.PHONY: article test-long bench gpu precision recipes experiments speedrun ablations pictures

##@ Measure
article: .venv/.installed ## compare autoencoder, VAE and CVAEs, 3 seeds each; over an hour
	$(RUN) benchmarks/article.py $(ARGS)
	$(RUN) docs/tables.py

test-long: .venv/.extras ## inject all faults, write docs/measured/faults.json; 30 min
	rm -f docs/measured/faults.json
	$(LONG) -m "fault or long" --faults docs/measured/faults.json $(ARGS)
	$(RUN) docs/tables.py

bench: .venv/.installed ## compare speed with a bare loop, Lightning, pythae; 30 min
	$(RUN) -m pip install --quiet --constraint constraints.txt cloudpickle
	$(RUN) -m pip install --quiet --no-deps pythae==0.1.2
	$(RUN) benchmarks/bench.py $(ARGS)
	$(RUN) docs/tables.py

gpu: .venv/.installed ## check and measure on one GPU; 8 min (ARGS=--cpu: no GPU)
	$(RUN) benchmarks/gpu.py $(ARGS); code=$$?; $(RUN) docs/tables.py && exit $$code

precision: .venv/.installed ## measure the cost of bfloat16 in nats, 10 seeds; 10 min
	$(RUN) benchmarks/precision.py $(ARGS)
	$(RUN) docs/tables.py

recipes: .venv/.installed ## measure the recipes, 3 seeds each; 3 h (ARGS=quick: minutes)
	$(RUN) benchmarks/recipes.py $(ARGS)
	$(RUN) docs/tables.py

experiments: .venv/.installed ## measure the experiments with other data, 3 seeds each; 2 h
	$(RUN) benchmarks/experiments.py $(ARGS)
	$(RUN) docs/tables.py

speedrun: .venv/.installed ## measure the time to 84 nats, 3 seeds; 10 min
	$(RUN) benchmarks/speedrun.py $(ARGS)

ablations: .venv/.installed ## measure ablations of the default, 3 seeds each; hours
	$(RUN) benchmarks/ablations.py $(ARGS)
	$(RUN) docs/tables.py

pictures: .venv/.installed ## train five runs and draw the pictures of docs/; 10 min
	$(RUN) docs/pictures.py $(ARGS)
	$(RUN) docs/diagram.py
