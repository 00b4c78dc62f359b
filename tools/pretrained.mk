##@ Use
.PHONY: pretrained

pretrained: .venv/.installed ## make pretrained/ from RUN=logs/latest, evaluated; 7 min
	$(RUN) tools/pretrained.py --run "$(RUN_FOLDER)" $(ARGS)
