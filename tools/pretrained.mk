##@ Use
.PHONY: pretrained

pretrained: .venv/.installed ## create pretrained/ from RUN=logs/latest and evaluate it; 7 min
	$(RUN) tools/pretrained.py --run "$(RUN_FOLDER)" $(ARGS)
