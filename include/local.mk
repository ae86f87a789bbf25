include_HEADERS = %D%/varve.h
